"""What dev.py is made of: the environment, the host, and the demo. Not part of the node pack."""
