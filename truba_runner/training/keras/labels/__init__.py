"""Labels, their class weights, and the objects that the config names."""
