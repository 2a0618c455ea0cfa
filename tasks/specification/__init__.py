"""What a user writes, read and checked: presets, YAML files and accelerate's configuration file."""
