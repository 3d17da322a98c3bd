"""What every room needs and no model: errors, files, hosts, devices, and the pieces of HTML pages."""
