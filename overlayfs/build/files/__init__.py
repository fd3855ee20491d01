"""Files that COPY and ADD move: `patterns` and `sources` find and read them, `copying` says where they go, `writer`
puts them there, `downloads` and `contexts` get trees from elsewhere."""
