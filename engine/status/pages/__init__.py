"""The pages: templates over the same answers that the API gives, and one small script that keeps them moving."""
