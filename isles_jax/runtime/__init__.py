"""What every command needs around its work: flags and errors, progress, signals, files, locks, several processes."""
