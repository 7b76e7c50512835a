"""Stage input files before submission; read and pack image collections."""
