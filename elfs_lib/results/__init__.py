"""What tables, figures and pages say of finished stages."""
