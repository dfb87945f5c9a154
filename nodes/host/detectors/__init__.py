"""What finds concepts in pictures by words, and cuts out what stands in a box: each an optional package of its own."""
