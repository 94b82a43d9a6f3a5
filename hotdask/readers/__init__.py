"""Files in, spectra or reason codes out: spectra of surveys and of one's own, and tables of users."""
