"""What is read off the model, held against plain autograd and against the gradient of the step."""
