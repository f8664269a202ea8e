"""What a method brings into anyone's Trainer. None of them touches a gradient."""
