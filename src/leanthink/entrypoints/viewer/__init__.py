"""`leanthink view`: a server of files, and in `static/` the page that shows a trace."""
