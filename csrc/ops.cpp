// The schemas of all ops. They live in the CPU library, so that fakes and autograd register where CUDA is not loaded.
#include <torch/csrc/stable/library.h>

#define MOTIONRNN_EXT_LIBRARY(name, m) STABLE_TORCH_LIBRARY(name, m)  // expands the name

MOTIONRNN_EXT_LIBRARY(MOTIONRNN_EXT_NAMESPACE, m) {
  m.def("cpu_instruction_set() -> str");

  m.def("motion_reset(Tensor reset_logits, Tensor offset) -> Tensor");
  m.def("motion_reset_backward(Tensor grad, Tensor reset_logits, Tensor offset) -> (Tensor, Tensor)");

  m.def(
      "motion_update(Tensor update_logits, Tensor candidate_logits, Tensor offset, Tensor trend, float alpha, "
      "float max_offset) -> (Tensor, Tensor)");
  // new_offset: as forward returned it, which tells where it was bounded
  m.def(
      "motion_update_backward(Tensor grad_offset, Tensor grad_trend, Tensor update_logits, Tensor candidate_logits, "
      "Tensor offset, Tensor new_offset, float alpha, float max_offset) -> (Tensor, Tensor, Tensor, Tensor)");

  // A MotionGRU step up to its warp, where one kernel does it: the convolutions of x, F and s(r) F, and motion_update.
  // It returns F_t, D', the mask's logits, and the logits of u, r and z, which backward reads.
  m.def(
      "motion_gates(Tensor x, Tensor offset, Tensor trend, Tensor x_weight, Tensor x_bias, Tensor state_weight, "
      "Tensor candidate_weight, float alpha, float max_offset) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  // wanted: a bit per gradient, x 1, offset and trend 2, weights and bias 8; the others come back empty
  m.def(
      "motion_gates_backward(Tensor grad_offset, Tensor grad_trend, Tensor grad_mask, Tensor x, Tensor offset, "
      "Tensor x_weight, Tensor x_bias, Tensor state_weight, Tensor candidate_weight, Tensor update_logits, "
      "Tensor reset_logits, Tensor candidate_logits, Tensor new_offset, float alpha, float max_offset, int wanted) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");

  // A MotionGRU step's gates, and offset_warp by the motion that they make, with weights that were packed once for many
  // steps, forward and backward, on CUDA. It returns the warped features, F_t, D', and the logits of the
  // mask, u, r and z. Backward returns the gradients of x, offset and trend, the factors of the gradients of the gates'
  // weights, which are the gradients of all logits, and s(r) F, and the gradient of the warp's weight.
  m.def(
      "motion_gates_pack(Tensor x_weight, Tensor x_bias, Tensor state_weight, Tensor candidate_weight, "
      "Tensor warp_weight) -> (Tensor, Tensor)");
  m.def(
      "gated_warp(Tensor x, Tensor offset, Tensor trend, Tensor x_weight, Tensor x_bias, Tensor state_weight, "
      "Tensor candidate_weight, Tensor warp_weight, Tensor packed, float alpha, float max_offset) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  // wanted: a bit per gradient, x 1, offset and trend 2, weights and bias 8; the others come back empty
  m.def(
      "gated_warp_backward(Tensor grad, Tensor grad_offset, Tensor grad_trend, Tensor x, Tensor offset, "
      "Tensor x_weight, Tensor x_bias, Tensor state_weight, Tensor candidate_weight, Tensor warp_weight, "
      "Tensor mask_logits, Tensor update_logits, Tensor reset_logits, Tensor candidate_logits, Tensor new_offset, "
      "Tensor packed, float alpha, float max_offset, int wanted, bool deterministic) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");

  // The end of a MotionGRU step, with an output gate of 1x1 and packed weights, on CUDA: Q, the decoder's result, g and
  // the blend X of Q and the maps. Returns X, Q and g. Backward returns the gradients of maps, Q and g.
  m.def("decode_blend_pack(Tensor decoder_weight, Tensor gate_weight) -> (Tensor, Tensor)");
  m.def(
      "decode_blend(Tensor warped, Tensor maps, Tensor decoder_weight, Tensor decoder_bias, Tensor gate_weight, "
      "Tensor gate_bias, Tensor packed, bool gates_maps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "decode_blend_backward(Tensor grad, Tensor maps, Tensor decoded, Tensor logits, Tensor decoder_weight, "
      "Tensor gate_weight, Tensor packed, bool gates_maps) -> (Tensor, Tensor, Tensor)");

  // A MotionGRU step from its encoder to its decoder, where the motion gates are one kernel. Its weights, from the
  // encoder's to the decoder's bias, are packed once for each direction, for this machine alone. It returns Q, F_t, D',
  // and what backward reads: the features, the logits of the mask, u, r and z, and the warped features.
  m.def("motion_step_pack(Tensor[] weights, bool backward) -> Tensor");
  m.def(
      "motion_step(Tensor maps, Tensor offset, Tensor trend, Tensor encoder_weight, Tensor x_weight, Tensor x_bias, "
      "Tensor state_weight, Tensor candidate_weight, Tensor warp_weight, Tensor decoder_weight, Tensor encoder_bias, "
      "Tensor decoder_bias, Tensor packed, float alpha, float max_offset) -> (Tensor, Tensor, Tensor, Tensor, Tensor, "
      "Tensor, Tensor, Tensor, Tensor)");
  // grad_maps: a part of the gradient of the maps, to which the step's is added. wanted: as above, without 1. Returns
  // the gradients of maps, offset, trend and features, of the logits of u, r, z and the mask, and of the warp's weight.
  m.def(
      "motion_step_backward(Tensor grad_decoded, Tensor grad_maps, Tensor grad_offset, Tensor grad_trend, "
      "Tensor offset, Tensor features, Tensor mask_logits, Tensor update_logits, Tensor reset_logits, "
      "Tensor candidate_logits, Tensor new_offset, Tensor encoder_weight, Tensor x_weight, Tensor x_bias, "
      "Tensor state_weight, Tensor candidate_weight, Tensor warp_weight, Tensor decoder_weight, Tensor encoder_bias, "
      "Tensor decoder_bias, Tensor packed, float alpha, float max_offset, int wanted) -> (Tensor, Tensor, Tensor, "
      "Tensor, Tensor, Tensor)");
  // The gradients of the gates' packed weights from those of their logits, summed over the batch, as many steps may be.
  m.def(
      "motion_gates_weight_gradients(Tensor grad_logits, Tensor x, Tensor offset, Tensor reset_logits, "
      "int kernel_size) -> (Tensor, Tensor, Tensor, Tensor)");

  // A 3x3 or 5x5 convolution that keeps the map's size, by Winograd's algorithm. The packed weight is for this machine
  // alone; `transposed`: it is that of the gradient of x.
  m.def("winograd_pack(Tensor weight, bool transposed) -> Tensor");
  m.def("winograd_conv(Tensor x, Tensor packed, int kernel_size, int out_channels, Tensor? bias) -> Tensor");
  // summed over the pairs of a gradient and an x
  m.def("winograd_weight_gradient(Tensor[] grads, Tensor[] xs, int kernel_size) -> Tensor");

  m.def("offset_warp(Tensor x, Tensor offset, Tensor mask_logits, Tensor weight) -> Tensor");
  // wanted: a bit per gradient, x 1, offset 2, mask_logits 4, weight 8; the others come back empty
  m.def(
      "offset_warp_backward(Tensor grad, Tensor x, Tensor offset, Tensor mask_logits, Tensor weight, int wanted, "
      "bool deterministic) -> (Tensor, Tensor, Tensor, Tensor)");

  // motion_update, and offset_warp of x by the new offset, in one launch; backward reads that offset, no trend
  m.def(
      "motion_warp(Tensor x, Tensor update_logits, Tensor candidate_logits, Tensor offset, Tensor trend, "
      "Tensor mask_logits, Tensor weight, float alpha, float max_offset) -> (Tensor, Tensor, Tensor)");
  // wanted: as above; 2 stands for all four of the motion's gradients
  m.def(
      "motion_warp_backward(Tensor grad, Tensor grad_offset, Tensor grad_trend, Tensor x, Tensor update_logits, "
      "Tensor candidate_logits, Tensor offset, Tensor new_offset, Tensor mask_logits, Tensor weight, float alpha, "
      "float max_offset, int wanted, bool deterministic) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");

  m.def("memory_update(Tensor gates_x, Tensor gates_h, Tensor memory, float forget_bias) -> Tensor");
  m.def(
      "memory_update_backward(Tensor grad, Tensor gates_x, Tensor gates_h, Tensor memory, float forget_bias) "
      "-> (Tensor, Tensor)");

  m.def("highway_output(Tensor output_logits, Tensor content, Tensor? highway) -> Tensor");
  m.def(
      "highway_output_backward(Tensor grad, Tensor output_logits, Tensor content, Tensor? highway) "
      "-> (Tensor, Tensor, Tensor)");

  m.def("gated_blend(Tensor gate_logits, Tensor a, Tensor b) -> Tensor");
  m.def("gated_blend_backward(Tensor grad, Tensor gate_logits, Tensor a, Tensor b) -> (Tensor, Tensor, Tensor)");

  // The spatiotemporal LSTM's step between its convolutions of inputs and those of the new memories. Returns [C', M'],
  // C' and M'.
  m.def(
      "st_lstm_update(Tensor cell_gates, Tensor memory_gates, Tensor cell, Tensor memory, float forget_bias) "
      "-> (Tensor, Tensor, Tensor)");
  // grad_memories, grad_content: the addends of the gradient of [C', M']. Returns the gradients of cell_gates, with
  // grad_output behind them, of memory_gates, cell and memory.
  m.def(
      "st_lstm_update_backward(Tensor grad_memories, Tensor grad_content, Tensor grad_cell, Tensor grad_memory, "
      "Tensor grad_output, Tensor cell_gates, Tensor memory_gates, Tensor cell, Tensor memory, float forget_bias) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  // highway_output of the sum of two addends, and the sum, which highway_output_backward reads
  m.def("summed_output(Tensor output_o, Tensor output_x, Tensor content, Tensor? highway) -> (Tensor, Tensor)");

  // memory_update and highway_output of C'. Returns H' and C'.
  m.def("conv_lstm_update(Tensor gates, Tensor cell, Tensor? highway, float forget_bias) -> (Tensor, Tensor)");
  m.def(
      "conv_lstm_update_backward(Tensor grad_hidden, Tensor grad_cell, Tensor gates, Tensor cell, Tensor new_cell, "
      "Tensor? highway, float forget_bias) -> (Tensor, Tensor, Tensor)");
}
