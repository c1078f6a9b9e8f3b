"""The whole speech loop in a browser: its engine and page in JavaScript, and the folder that holds them."""
