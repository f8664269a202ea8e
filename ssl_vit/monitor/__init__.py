"""What is watched while a method trains: Lightning callbacks and one logger. None of them touches a gradient."""
