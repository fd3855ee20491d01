"""What do the commands do that run, list and remove containers, or mount an image?"""
