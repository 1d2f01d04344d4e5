"""The names of tensor axes, used in every shape annotation.

batch      sequences or images stacked in one call (for stacked lanes: lanes x sequences)
token      positions of a sequence
output     predictions of a sequence (one a position), or the one of an image
position   positions that a metric counts, flattened over sequences
channel, height, width  of an image
d_model    width of the residual stream
d_mlp      width of the MLP's hidden layer
d_z        n_heads * d_head, the input width of the attention output projection
vocabulary rows of the unembedding (classes for an image classifier)
document   documents (the clusters of the standard errors)
cell       what an accumulator keeps apart: lanes, layers, domains
metric     the measures of one cell
row        outputs of a projection
weight     weights of a row, one an input
width      coordinates of an activation
"""
