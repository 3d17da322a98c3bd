"""What people type and call: the command line, the OpenAI-compatible server, the viewer, the demo."""
