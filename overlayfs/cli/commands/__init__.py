"""Which commands, arguments and options are there? Declarations only; the work is imported when a command is called."""
