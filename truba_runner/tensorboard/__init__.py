"""TensorBoard: event files, their way to the shared disk, the server on a private socket, the tunnel."""
