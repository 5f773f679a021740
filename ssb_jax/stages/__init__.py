"""What happens, in order. One file a stage; stages meet in the run folder and never import each other."""
