"""Devices that compute, one kind a file; nothing else asks which kind a device is."""
