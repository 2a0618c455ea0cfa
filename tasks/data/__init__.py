"""Questions and passages: read, validated, indexed and published."""
