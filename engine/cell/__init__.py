"""The cell: messages between server, site and job."""
