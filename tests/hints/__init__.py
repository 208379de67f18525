"""Every hint that the program can print, and a test that follows it to its end."""
