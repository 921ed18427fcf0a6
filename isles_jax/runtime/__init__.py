"""What every command needs besides its task: flags and errors, progress, signals, files, locks, several processes."""
