"""Driving clips: one second of video -> velocity and curvature of the next second."""
