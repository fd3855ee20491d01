"""What is in an image, and which layer brought it?

`browse` merges the file indexes of the layers, `waste` and `report` count what they show; `layer_files` opens the
files themselves, `copy_out` and `tar_out` take them out of the image. Trees are immutable once they are merged.
"""
