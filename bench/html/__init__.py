"""A run's report as one HTML file that needs nothing else: what it shows is prepared in Python, the page only shows."""
