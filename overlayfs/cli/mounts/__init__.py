"""What do the commands do that make, list, watch and end mounts, or look at an upper? `live` asks the daemons."""
