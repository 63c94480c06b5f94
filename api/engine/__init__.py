"""What keeps a device busy: the lane, the process around it, and the client that web workers hold."""
