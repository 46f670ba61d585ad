"""What each layer can lose, predicted from the file alone by a graph neural network."""
