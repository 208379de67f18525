"""The linear algebra under MonoSoup: the spectrum of an update and its leading directions."""
