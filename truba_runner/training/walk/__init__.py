"""Find, save, restore and compare the state of a training by walking its objects."""
