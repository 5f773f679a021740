"""Other people's methods on our data, for comparison. The only package, with `bench`, that may import torch."""
