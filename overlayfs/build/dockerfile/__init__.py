"""What a Dockerfile says: its text (`lines`), its instructions (`parser`, `health`), and which stages a build needs
(`plan`). No I/O."""
