"""What every command does with its output."""
