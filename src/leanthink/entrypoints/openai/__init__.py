"""The OpenAI-compatible server: bodies → requests → one engine in a thread of its own → documents or events."""
