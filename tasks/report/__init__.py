"""What a sweep found: statistics, words, figures, the page, and a night's message."""
