"""Pages of one HTML file with plots inside, which load nothing and run nothing."""
