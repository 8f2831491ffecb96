"""What is put back after passes of ours, so that training sees nothing of them."""
