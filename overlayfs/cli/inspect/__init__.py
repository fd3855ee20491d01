"""What do the commands do that look into images and uppers? `looking` opens images; `diff`, `patch` show changes."""
