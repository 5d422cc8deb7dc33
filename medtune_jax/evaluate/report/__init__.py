"""What people read of scores: report.md, report.html, the console's tables, comparisons."""
