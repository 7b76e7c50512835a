"""What happens around fit: report, save, resume."""
