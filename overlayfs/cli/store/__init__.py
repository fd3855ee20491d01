"""What do the commands do that bring images into the store, change them there, and send them elsewhere?"""
