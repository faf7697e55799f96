#!/usr/bin/env python3
"""Plants one-line faults, one at a time, and sees whether a test notices each.

usage: planted_faults.py [--list | --check] [--scratch FOLDER] [--jobs N] [NAME...]

Works in a copy of the tree (build/planted_faults, kept for the next time), never in the checkout:
changes one text, builds what the fault's tests need, runs them, and puts the text back. NAMEs, which
may have * and ?, choose faults. --list prints them; --check only sees whether every text still
stands in its file, once: if one does not, the code has moved and the fault has to follow it.
Ends in an error if a fault is not caught. Needs what scripts/setup.sh tests brings.
"""

import argparse
import fnmatch
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 300  # for the tests of one fault; longer ones hang, which is noticed too

# One instruction set besides the portable one: the rest would only take time to compile.
FEWER_TARGETS = ("src/backend/cpu/targets.h", "(HWY_SSSE3 |", "(HWY_AVX3 | HWY_SSSE3 |")


@dataclass
class Fault:
    """`original` stands in `file` exactly once. `tests`: "PROGRAM" or "PROGRAM:FILTER" of
    GoogleTest, or "NAME_test.py" or "NAME_test.py:CLASS.TEST" of tests/apps/graft."""
    name: str
    file: str
    original: str
    faulty: str
    tests: tuple

    def __init__(self, name, file, original, faulty, *tests):
        self.name, self.file, self.original, self.faulty = name, file, original, faulty
        self.tests = tests

    @property
    def build(self):
        """The core alone compiles in a fraction of the time."""
        in_core = self.file.startswith(("src/", "include/"))
        hosted = any(test.startswith(("metal_", "mlx_")) or ".py" in test for test in self.tests)
        return "core" if in_core and not hosted else "whole"


TILE = "src/product/cpu/tile-inl.h"
SHRINK = "src/product/cpu/shrink-inl.h"
OUTER = "src/product/cpu/outer-inl.h"
PACK = "src/weight/cpu/pack-inl.h"
FORWARD = "src/attention/cpu_forward.cc"
BACKWARD = "src/attention/cpu_backward.cc"
NORM = "src/rms_norm/cpu.cc"
SWIGLU = "src/swiglu/cpu.cc"
LOSS = "src/linear_cross_entropy/cpu.cc"
TRAINER = "llm/train/trainer.cc"
OPTIMIZER = "llm/train/optimizer.cc"
SCHEDULE = "llm/train/lr_schedule.cc"
LOOP = "llm/train/loop.cc"
BATCHES = "llm/data/batches.cc"
DATASET = "llm/data/dataset.cc"
SAMPLER = "llm/generate/sampler.cc"

FAULTS = [
    # Kernels.
    Fault("tile_overwrites_where_it_should_add", TILE,
          "      if (args.accumulate) {\n", "      if (false) {\n", "lora_test:Lora.*"),
    Fault("tile_masks_its_second_half_like_its_first", TILE,
          "second = LaneBits(kLanes)", "second = LaneBits(0)", "lora_test:Lora.*"),
    Fault("tile_forgets_the_last_ragged_column", TILE,
          "for (int j = 0; j < args.cols; ++j) y[j] =", "for (int j = 0; j < args.cols - 1; ++j) y[j] =",
          "linear_test:Linear.*"),
    Fault("tile_adds_half_of_the_bias_twice", TILE,
          "hn::Add(acc[i][1], bias1)", "hn::Add(acc[i][1], bias0)", "linear_test:Linear.*",
          "lora_test:Lora.*"),
    Fault("tile_skips_the_low_rank_part", TILE,
          "args.b_stride, args.low_steps, w, 0, acc)", "args.b_stride, 0, w, 0, acc)",
          "lora_test:Lora.*"),
    Fault("shrink_forgets_the_scaling", SHRINK,
          "hn::Store(hn::Mul(hn::Set(d, scaling), hn::LoadU(d, h + i)), d, scaled + i);",
          "hn::Store(hn::LoadU(d, h + i), d, scaled + i);", "lora_test:Lora.*"),
    Fault("shrink_keeps_the_last_step_alone", SHRINK,
          "acc[j][v] = hn::MulAdd(xv[v], aj, acc[j][v]);", "acc[j][v] = hn::Mul(xv[v], aj);",
          "lora_test:Lora.*"),
    Fault("shrink_of_a_panel_too_few", SHRINK,
          "      for (int p = 0; p < panels; ++p) {\n        ShrinkColumns",
          "      for (int p = 0; p < panels - 1; ++p) {\n        ShrinkColumns", "lora_test:Lora.*"),
    Fault("outer_products_miss_the_last_column", OUTER,
          "(packed, x, m, cols - kLanes, out, ld)", "(packed, x, m, cols - kLanes - 1, out, ld)",
          "lora_test:Lora.*"),
    Fault("outer_products_miss_the_last_row", OUTER,
          "for (std::int64_t i = 0; i < m; ++i) sum +=", "for (std::int64_t i = 1; i < m; ++i) sum +=",
          "lora_test:Lora.*"),
    Fault("outer_products_miss_a_rank", OUTER,
          "for (; j + 2 <= rank; j += 2) {", "for (; j + 2 < rank; j += 2) {", "lora_test:Lora.*"),
    Fault("pack_takes_a_strided_matrix_for_its_transpose", PACK,
          "row * s.row_stride + col * s.col_stride", "row * s.col_stride + col * s.row_stride",
          "lora_test:Lora.*", "linear_test:*"),
    Fault("attention_logsumexp_is_off_by_a_hundredth", FORWARD,
          "logsumexp = max + std::log(sum);", "logsumexp = max + std::log(sum) + 0.01f;",
          "attention_test"),
    Fault("attention_chances_do_not_add_up_to_one", FORWARD,
          "factor = 1.0f / sum;", "factor = 1.0f / (sum + 1e-3f);", "attention_test"),
    Fault("attention_sees_a_key_of_the_future", FORWARD,
          "shape_.seen(first + i)), scores + seen, 0.0f);",
          "shape_.seen(first + i) + 1), scores + seen, 0.0f);", "attention_test"),
    Fault("decoding_sees_as_much_as_its_first_query", FORWARD,
          "shape_.seen(r % queries) - first);", "shape_.seen(0) - first);", "attention_test"),
    Fault("attention_delta_of_another_row", BACKWARD,
          "rows_.dot(worker.dy + i * d, worker.dq, d)", "rows_.dot(worker.dy, worker.dq, d)",
          "attention_test"),
    Fault("attention_gradient_is_not_turned_back", BACKWARD,
          "if (turned) head_rows_.turn_back(rows, count, first);", "", "attention_test"),
    Fault("attention_gradient_of_one_query_head_alone", BACKWARD,
          "for (std::int64_t h = 1; h < group; ++h) {", "for (std::int64_t h = 2; h < group; ++h) {",
          "attention_test"),
    Fault("attention_key_gradient_skips_a_query", BACKWARD,
          "shape_.first_query(key) - block.first);", "shape_.first_query(key) + 1 - block.first);",
          "attention_test"),
    Fault("slices_of_a_long_sum_overwrite_each_other", "src/product/cpu/run.cc",
          "slice.accumulate = true;", "slice.accumulate = product.accumulate;",
          "linear_test:Linear.*"),
    Fault("ranges_of_a_large_weight_are_passed_over", "src/product/cpu/partition.h",
          "return {index % chunks(), index / chunks()};",
          "return {index % chunks(), index / splits};", "linear_test:Linear.*"),
    Fault("h_is_rounded_to_bfloat16", "src/product/cpu/run.cc",
          "if (operands.h != nullptr && write_h) {",
          "if (operands.h != nullptr && write_h) {\n"
          "      for (float *e = worker.h + j * h_size, *end = e + h_size; e < end; ++e) {\n"
          "        *e = from_bfloat16(to_bfloat16(*e));\n      }", "lora_test"),
    Fault("query_heads_read_another_key_head", "src/attention/heads.h",
          "return head / (heads / kv_heads);", "return head % kv_heads;", "attention_test"),
    Fault("rms_norm_forgets_eps", NORM,
          "squares.total() / n + eps", "squares.total() / n + 0 * eps",
          "rms_norm_test"),
    Fault("rms_norm_pull_is_a_power_short", NORM,
          "mean * rstd[r] * rstd[r] * rstd[r]", "mean * rstd[r] * rstd[r]", "rms_norm_test"),
    Fault("rms_norm_forgets_the_residuals_gradient", NORM,
          "return dsum == nullptr ? norm : hn::Add(norm, lanes.load(dsum + i));", "return norm;",
          "rms_norm_test"),
    Fault("rms_norm_weight_gradient_of_unnormed_rows", NORM,
          "hn::MulAdd(gradient, hn::Mul(at, scales[r]), of_weight)",
          "hn::MulAdd(gradient, at, of_weight)", "rms_norm_test"),
    Fault("layer_norm_variance_is_not_about_the_mean", "src/layer_norm/cpu.cc",
          "squares.total() / n - rest * rest", "squares.total() / n + mean * 1e-3f",
          "layer_norm_test"),
    Fault("layer_norm_gradient_keeps_its_mean", "src/layer_norm/cpu.cc",
          "hn::Mul(hn::Sub(g, means_g), rstds)", "hn::Mul(g, rstds)", "layer_norm_test"),
    Fault("layer_norm_bias_gradient_is_the_weights", "src/layer_norm/cpu.cc",
          "of_bias = hn::Add(of_bias, gradient);", "of_bias = hn::Add(of_bias, g);",
          "layer_norm_test"),
    Fault("softmax_of_a_maximum_too_low", "src/softmax/cpu.cc",
          "element<T>(p.x, first, 0), count);", "element<T>(p.x, 0, 0), count) - 200.0f;",
          "softmax_test"),
    Fault("softmax_gradient_forgets_the_scale", "src/softmax/cpu.cc",
          "hn::Mul(hn::Mul(lanes.load(y + i), scales), hn::Sub", "hn::Mul(lanes.load(y + i), hn::Sub",
          "softmax_test"),
    Fault("swiglu_slope_has_a_wrong_sign", SWIGLU,
          "hn::MulAdd(gate, hn::Sub(one, sigmoid), one)", "hn::MulAdd(gate, hn::Sub(sigmoid, one), one)",
          "swiglu_test"),
    Fault("swiglu_forgets_the_rest_of_a_row", SWIGLU,
          "    StorePart(Forward(LoadPart(gate + i, rest), LoadPart(up + i, rest)), y + i, rest);",
          "    StorePart(Forward(LoadPart(gate + i, rest), LoadPart(up + i, rest)), y + i, rest - 1);",
          "swiglu_test"),
    Fault("rope_frequencies_of_the_whole_head", "src/backend/cpu/rotary_angles.cc",
          "-static_cast<double>(i) / static_cast<double>(pairs)",
          "-static_cast<double>(i) / static_cast<double>(2 * pairs)", "rope_test", "attention_test"),
    Fault("rope_inverse_turns_forward", "src/rope/cpu.cc",
          "params.inverse ? -1.0f : 1.0f", "1.0f", "rope_test"),
    Fault("rope_table_of_another_theta", "src/backend/cpu/rotary_angles.cc",
          "return angles->theta == rotary.theta && ", "return ", "rope_test", "attention_test"),
    Fault("rope_table_of_another_scaling", "src/backend/cpu/rotary_angles.cc",
          "angles->scaling_factor == rotary.scaling_factor &&\n           ", "", "rope_test"),
    Fault("loss_of_ignored_rows_keeps_what_was_there", LOSS,
          "p_.losses.mutable_data_as<float>()[row * p_.losses.stride(0)] = 0.0f;", "",
          "linear_cross_entropy_test"),
    Fault("loss_gradient_forgets_the_target", LOSS, "z[target] -= 1.0f;", "z[target] -= 0.99f;",
          "linear_cross_entropy_test"),
    Fault("loss_merges_sums_of_different_maxima", LOSS,
          "a.sum * std::exp(static_cast<double>(a.max) - max)", "a.sum", "linear_cross_entropy_test"),
    Fault("loss_gradient_of_one_slice_is_lost", LOSS,
          "  float* const sum = parts_.sums + row * plan_.k;\n"
          "  for (std::int64_t slice = 1; slice < plan_.slices; ++slice) {",
          "  float* const sum = parts_.sums + row * plan_.k;\n"
          "  for (std::int64_t slice = 2; slice < plan_.slices; ++slice) {", "linear_cross_entropy_test"),
    Fault("bfloat16_rounds_ties_up", "src/backend/bfloat16.h",
          "(bits + 0x7fffu + ((bits >> 16) & 1u))", "(bits + 0x8000u)", "linear_test",
          "rms_norm_test"),
    Fault("float16_overflows_half_a_step_late", "src/backend/float16.h",
          "if (magnitude >= 65520.0f)", "if (magnitude >= 131072.0f)", "float16_test"),
    Fault("float16_has_no_subnormals", "src/backend/float16.h",
          "std::max(std::ilogb(magnitude), -14)", "std::max(std::ilogb(magnitude), -15)",
          "float16_test"),
    Fault("transposed_view_keeps_its_strides", "src/tensor_view.cc",
          "  std::swap(view.strides_[0], view.strides_[1]);\n", "", "tensor_view_test"),

    # The MLX host.
    Fault("host_swaps_the_gradients_of_swiglu", "hosts/mlx/swiglu.cc",
          "{call.cotangents[0], call.primals[0], call.primals[1]}",
          "{call.cotangents[0], call.primals[1], call.primals[0]}", "mlx_tests:*wiglu*"),
    Fault("host_takes_x_for_the_sum", "hosts/mlx/rms_norm.cc",
          "norm.residual ? call.outputs[1] : call.primals[0]", "call.primals[0]",
          "mlx_tests:*Norm*"),
    Fault("host_reads_no_dropout_seed", "hosts/mlx/lora.cc",
          "params.dropout.seed = *seed, ", "", "mlx_tests:*ropout*"),
    Fault("host_makes_rows_of_a_batch_with_dropout", "hosts/mlx/lora.cc",
          "    if (call.dropout > 0) return {};\n    std::vector<bool> rows(in.size(), false);\n"
          "    rows[0] = true;",
          "    std::vector<bool> rows(in.size(), false);\n    rows[0] = true;",
          "mlx_tests:*ropout*:*Transforms*"),
    Fault("operands_are_never_free", "hosts/mlx/graph_memory.cc",
          "if (--readers_[input.id()] == 0) leave(input);", "--readers_[input.id()];",
          "mlx_tests:GraphMemory.*"),

    # Launches on Metal, executed on the stand-in.
    Fault("metal_plan_counts_no_bias", "src/linear/metal.cc",
          "product.bias = next(inputs, p.bias);", "", "mlx_metal_tests:*Linear*"),
    Fault("metal_backward_reads_h_for_g", "src/lora/metal.cc",
          "add_outer(plan, at.x, g, scaling", "add_outer(plan, at.x, at.h, scaling",
          "metal_tests:*Lora*"),
    Fault("host_loss_gradient_is_unscaled", "hosts/mlx/linear_cross_entropy.cc",
          "return mx::multiply(unscaled, factors, call.s);", "return unscaled;", "mlx_tests:*CrossEntropy*"),
    Fault("host_composed_queries_stand_at_the_start", "hosts/mlx/attention.cc",
          "options.rotary.position + k.shape(2) - q.shape(2)", "options.rotary.position",
          "mlx_tests:*ttention*"),

    # Training.
    Fault("dropout_mask_is_the_same_every_step", TRAINER,
          "offset += static_cast<std::uint64_t>(dropout_.offsets.size()) << kCallBits;",
          "offset += 0;", "llm_tests:TrainerTest.*"),
    Fault("learning_rate_of_the_next_iteration", TRAINER,
          "options_.schedule.rate(iteration_)", "options_.schedule.rate(iteration_ + 1)",
          "llm_tests:TrainerTest.*"),
    Fault("gradients_add_up_instead_of_averaging", TRAINER,
          "return mean + share * (g - mean);", "return mean + share * g;", "llm_tests:TrainerTest.*"),
    Fault("every_batch_counts_the_same", TRAINER,
          "targets_ += batch.num_targets;", "targets_ += 1;", "llm_tests:TrainerTest.*"),
    Fault("gradients_are_not_cleared", TRAINER,
          "  targets_ = 0;\n  iterations_ = 0;\n", "  iterations_ = 0;\n", "llm_tests:TrainerTest.*"),
    Fault("long_gradients_stay_long", TRAINER,
          "shorten ? options_.max_grad_norm / result.grad_norm : 1.0", "1.0",
          "llm_tests:TrainerTest.*"),
    Fault("resumed_moments_start_anew", TRAINER,
          "  optimizer_.restore(std::move(state.optimizer));\n", "", "finetune_resume_test.py"),
    Fault("resumed_dropout_starts_anew", TRAINER,
          "  dropout_ = std::move(state.dropout);\n", "", "finetune_resume_test.py"),
    Fault("adam_corrects_as_if_a_step_later", OPTIMIZER,
          "std::pow(options_.beta2, t)", "std::pow(options_.beta2, t + 1)", "llm_tests:Adam*"),
    Fault("adam_decays_like_adamw", OPTIMIZER,
          "options_.kind == OptimizerKind::kAdamW ? options_.weight_decay : 0.0",
          "options_.weight_decay", "llm_tests:Adam*"),
    Fault("decay_ignores_the_rate", OPTIMIZER,
          "1.0 - learning_rate * decay", "1.0 - decay", "llm_tests:Adam*"),
    Fault("warmup_is_an_iteration_short", SCHEDULE,
          "return peak * iteration / warmup;", "return peak * (iteration - 1) / warmup;",
          "llm_tests:LrSchedule.*"),
    Fault("cosine_falls_to_half", SCHEDULE, "peak * 0.5 * (1.0 + std::cos(",
          "peak * 0.5 * (1.0 + 0.5 * std::cos(", "llm_tests:LrSchedule.*"),
    Fault("an_equal_validation_counts_as_better", LOOP,
          "loss < best.loss", "loss <= best.loss", "finetune_flags_test.py:EarlyStop"),
    Fault("a_report_goes_back_to_the_start", LOOP,
          "      state.window = {};\n", "", "finetune_flags_test.py:Updates"),
    Fault("target_is_the_token_itself", BATCHES,
          "batch.targets[row * length + t] = sample.tokens[t + 1];",
          "batch.targets[row * length + t] = sample.tokens[t];", "batches_test"),
    Fault("masked_tokens_are_targets", BATCHES,
          "if (!sample.is_target[t + 1]) continue;", "if (!sample.is_target[t]) continue;",
          "batches_test"),
    Fault("every_epoch_has_the_same_order", BATCHES,
          "low(epoch), high(epoch)}", "low(0), high(0)}", "batches_test"),
    Fault("a_loss_counts_padding", "llm/evaluate/mean_loss.cc",
          "targets_ += batch.num_targets;", "targets_ += batch.batch_size * batch.length;",
          "finetune_flags_test.py:Test", "run_commands_test", "llm_tests:*"),
    Fault("recomputed_layers_are_others", "llm/model/llama.cc",
          "const Stream stream = with_norm(kept[0], layer);",
          "const Stream stream = with_norm(kept[0], 0);", "llm_tests:GradCheckpoint*"),
    Fault("pairs_are_left_out_of_the_memory", "llm/train/memory_estimate.cc",
          "std::max(memory.tensors, pairs_bytes + need.tensors)",
          "std::max(memory.tensors, need.tensors)", "llm_tests:MemoryEstimate.*"),

    # Data and files.
    Fault("text_has_no_end", DATASET,
          "sample.tokens.push_back(tokenizer_.eos());", "", "dataset_test"),
    Fault("prompts_are_masked_unasked", DATASET,
          "if (!options_.mask_prompt) sample.is_target.assign", "if (false) sample.is_target.assign",
          "dataset_test"),
    Fault("a_chat_is_cut_inside_an_answer", DATASET,
          "while (length > 0 && !ends_answer(length - 1)) --length;", "", "dataset_test"),
    Fault("left_out_lines_are_counted_from_zero", DATASET,
          "LeftOut{reason, 0, line_}", "LeftOut{reason, 0, line_ - 1}", "dataset_test"),
    Fault("a_damaged_checkpoint_is_taken", "llm/train/checkpoint.cc",
          "if (fingerprint_of(bytes) != fingerprint.get<std::string>()) {", "if (false) {",
          "llm_tests:Checkpoint.*"),
    Fault("pending_gradients_lose_their_weight", "llm/train/checkpoint_state.cc",
          "trainer.pending.targets = count_at(pending, \"targets\");", "trainer.pending.targets = 1;",
          "llm_tests:Checkpoint.*"),
    Fault("files_are_not_on_disk", "llm/files/atomic_file.cc",
          "!file.write(bytes) || !file.sync() || !file.close()",
          "!file.write(bytes) || !file.close()", "llm_tests:AtomicFile.*"),
    Fault("a_failed_write_leaves_its_file", "llm/files/atomic_file.cc",
          "if (!placed_) fs::remove_all(temporary_, ignored);", "", "llm_tests:AtomicFile.*"),
    Fault("overlong_utf8_passes", "llm/files/utf8.cc",
          "if (lead == 0xE0) low = 0xA0;", "", "utf8_test"),
    Fault("adapters_are_saved_untransposed", "llm/adapter/adapter_file.cc",
          "tensors.emplace_back(tensor_name(module, 'B'), mx::transpose(pairs[i].b));",
          "tensors.emplace_back(tensor_name(module, 'B'), pairs[i].b);", "llm_tests:*dapter*"),
    Fault("an_adapter_with_more_tensors_passes", "llm/adapter/adapter_file.cc",
          "  if (!tensors.empty()) {\n", "  if (false) {\n", "llm_tests:*dapter*"),
    Fault("gguf_tensors_may_overlap", "llm/weights/gguf_parser.cc",
          "order[i - 1]->offset + order[i - 1]->bytes > order[i]->offset", "false", "gguf_file_test"),
    Fault("gguf_tensors_may_reach_past_the_end", "llm/weights/gguf_parser.cc",
          "tensor.bytes > size_ - data - tensor.offset", "false", "gguf_file_test"),
    Fault("gguf_blocks_are_a_byte_long", "llm/weights/ggml_type.cc",
          "{GgmlType::kQ4_1, \"Q4_1\", 32, 20}", "{GgmlType::kQ4_1, \"Q4_1\", 32, 21}",
          "gguf_file_test", "llm_tests:GgufTensors*"),
    Fault("rotary_rows_stay_as_the_file_has_them", "llm/model/llama_weights.cc",
          "return mx::reshape(mx::swapaxes(pairs, 1, 2), rows.shape());",
          "return mx::reshape(pairs, rows.shape());", "llm_tests:Llama*"),
    Fault("safetensors_may_overlap", "llm/weights/safetensors_header.cc",
          "extents[i - 1].end > extents[i].begin", "false", "llm_tests:*dapter*"),

    # Tokenizer.
    Fault("later_merges_win", "llm/tokenizer/byte_pairs.cc",
          "Merge{static_cast<std::int32_t>(rank), id}", "Merge{-static_cast<std::int32_t>(rank), id}",
          "tokenizer_test"),
    Fault("a_merge_forgets_what_stands_before", "llm/tokenizer/byte_pairs.cc",
          "    offer(left.previous);\n", "", "tokenizer_test"),
    Fault("digits_stay_together", "llm/tokenizer/pre_tokenizer.cc",
          "  if (start.char_class() == CharClass::kDigit) {\n    end.advance();",
          "  if (start.char_class() == CharClass::kDigit) {\n    end.skip(CharClass::kDigit);",
          "tokenizer_test"),
    Fault("a_contraction_is_unknown", "llm/tokenizer/pre_tokenizer.cc",
          "\"'ll\", \"'d\"}", "\"'ll\"}", "tokenizer_test"),

    # Generation.
    Fault("repetition_divides_negative_logits_too", SAMPLER,
          "value > 0 ? value / penalty : value * penalty", "value / penalty",
          "llm_tests:RepetitionPenalty.*"),
    Fault("repetition_counts_every_time", SAMPLER,
          "for (const int token : std::set<int>(recent.begin(), recent.end())) {",
          "for (const int token : recent) {", "llm_tests:RepetitionPenalty.*"),
    Fault("top_p_keeps_one_too_few", SAMPLER,
          "kept += sorted[count++].chance;\n  return std::max<std::size_t>(count, 1);",
          "kept += sorted[count++].chance;\n  return std::max<std::size_t>(count - 1, 1);",
          "llm_tests:Candidates.*"),
    Fault("min_p_is_of_the_whole", SAMPLER,
          "return c.chance < options.min_p;", "return c.chance < options.min_p * mass_of(list);",
          "llm_tests:Candidates.*"),
    Fault("temperature_multiplies", SAMPLER,
          "- largest) / options.temperature", "- largest) * options.temperature",
          "llm_tests:Candidates.*"),
    Fault("a_stop_string_is_shown", "llm/generate/stop_strings.cc",
          "const std::size_t kept = found_ ? stop_size : undecided();",
          "const std::size_t kept = found_ ? 0 : undecided();", "stop_strings_test"),
    Fault("a_cache_that_grows_forgets", "llm/model/kv_cache.cc",
          "{shape[0], length, shape[2], shape[3]})", "{shape[0], length - 1, shape[2], shape[3]})",
          "llm_tests:*"),
    Fault("padding_is_seen", "llm/model/kv_cache.cc",
          "return mx::logical_and(causal, mx::greater_equal(key, first));", "return causal;",
          "llm_tests:Llama*"),
    Fault("a_prompt_cache_goes_on_too_far", "llm/generate/prompt_cache.cc",
          "sequence.rewind(static_cast<int>(differ.in1 - sequence.tokens().begin()));", "",
          "llm_tests:*", "run_commands_test"),
]


class Moved(Exception):
    """A text that is to be changed is not where it was."""


def changed(text, original, faulty, file):
    count = text.count(original)
    if count != 1:
        raise Moved(f"{file}: found {count} times, expected once: {original.strip()!r}")
    return text.replace(original, faulty)


def check(faults, root):
    """What is wrong with the list, a line each."""
    wrong = []
    if len({fault.name for fault in FAULTS}) != len(FAULTS):
        wrong.append("two faults have one name")
    for name, file, original, faulty in [("fewer targets", *FEWER_TARGETS)] + [
            (fault.name, fault.file, fault.original, fault.faulty) for fault in faults]:
        try:
            text = (root / file).read_text(encoding="utf-8")
            if changed(text, original, faulty, file) == text:
                wrong.append(f"{name}: changes nothing")
        except (Moved, OSError) as error:
            wrong.append(f"{name}: {error}")
    return wrong


def copy_tree(tree):
    """Makes the tree as the checkout is, and leaves alone what is so already: builds are kept."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                            cwd=ROOT, check=True, capture_output=True).stdout.decode()
    wanted = {Path(name) for name in listed.split("\0") if name and (ROOT / name).is_file()}
    for folder, folders, files in os.walk(tree):
        folders[:] = [name for name in folders if name != ".deps"]
        for name in files:
            path = Path(folder, name)
            if path.relative_to(tree) not in wanted and not path.is_symlink():
                path.unlink()
    for name in wanted:
        source, target = ROOT / name, tree / name
        if target.is_file() and target.read_bytes() == source.read_bytes():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
        target.touch()
    if (ROOT / ".deps").exists() and not (tree / ".deps").exists():
        (tree / ".deps").symlink_to((ROOT / ".deps").resolve())


def target_of(test):
    """What has to be built to run it."""
    program = test.partition(":")[0]
    return ["graft_cli", "write_tiny_model"] if program.endswith(".py") else [program]


def command_of(test, tree, build):
    program, _, chosen = test.partition(":")
    if program.endswith(".py"):
        return [sys.executable, tree / "tests/apps/graft" / program, build / "bin/graft",
                build / "bin/write_tiny_model", *([chosen] if chosen else [])]
    return [build / "bin" / program, "--gtest_brief=1", *([f"--gtest_filter={chosen}"] if chosen else [])]


class Scratch:
    """The copy and its two builds."""

    def __init__(self, folder, jobs):
        self.tree, self.folder, self.jobs = folder / "tree", folder, jobs
        self.configured = set()
        self.tree.mkdir(parents=True, exist_ok=True)
        copy_tree(self.tree)
        self.write(*FEWER_TARGETS)

    def write(self, file, original, faulty):
        """Changes a text, and gives the file's contents as they were."""
        path = self.tree / file
        before = path.read_text(encoding="utf-8")
        path.write_text(changed(before, original, faulty, file), encoding="utf-8")
        return before

    def build(self, name, targets):
        """Whether all targets could be built."""
        build, log = self.folder / name, self.folder / "build.log"
        with open(log, "w", encoding="utf-8") as out:
            def run(*command):
                return subprocess.run(command, stdout=out, stderr=out, check=False).returncode == 0

            if name not in self.configured:
                ccache = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
                # A build type of its own, which the levels of the other ones do not apply to.
                if not run("cmake", "-S", self.tree, "-B", build, "-G", "Ninja", "-DGRAFT_TESTS=ON",
                           f"-DGRAFT_MLX={'ON' if name == 'whole' else 'OFF'}",
                           "-DCMAKE_BUILD_TYPE=Faults", "-DCMAKE_CXX_FLAGS_FAULTS=-O1 -DNDEBUG",
                           *ccache):
                    sys.exit(f"cannot configure: see {log}")
                self.configured.add(name)
            return run("cmake", "--build", build, "-j", str(self.jobs), "--target", *targets)

    def passes(self, name, test):
        """Whether the test runs and finds nothing."""
        command = command_of(test, self.tree, self.folder / name)
        try:
            run = subprocess.run([str(word) for word in command], check=False, timeout=SECONDS,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                 errors="replace")
        except subprocess.TimeoutExpired:
            return False
        # A filter that fits nothing would pass for ever.
        ran = "0 tests from 0" not in run.stdout and "Running 0 tests" not in run.stdout
        if not ran or "Ran 0 tests" in run.stdout:
            sys.exit(f"{test}: runs no test")
        return run.returncode == 0

    def plant(self, fault):
        """The test that saw the fault; None if none did."""
        before = self.write(fault.file, fault.original, fault.faulty)
        try:
            for test in fault.tests:
                if not self.build(fault.build, target_of(test)):
                    sys.exit(f"{fault.name}: does not compile; see {self.folder / 'build.log'}")
                if not self.passes(fault.build, test):
                    return test
            return None
        finally:
            (self.tree / fault.file).write_text(before, encoding="utf-8")


def first_without_faults(scratch, faults):
    """Tests that fail by themselves would see every fault."""
    for build in ("core", "whole"):
        tests = sorted({test for fault in faults if fault.build == build for test in fault.tests})
        targets = sorted({target for test in tests for target in target_of(test)})
        if not targets:
            continue
        print(f"building {', '.join(targets)}", flush=True)
        if not scratch.build(build, targets):
            sys.exit(f"cannot build without faults; see {scratch.folder / 'build.log'}")
        failed = [test for test in tests if not scratch.passes(build, test)]
        if failed:
            sys.exit(f"fails without faults: {', '.join(failed)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--scratch", type=Path, default=ROOT / "build/planted_faults")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    faults = [fault for fault in FAULTS if not arguments.names or
              any(fnmatch.fnmatchcase(fault.name, name) for name in arguments.names)]
    if not faults:
        sys.exit("no fault has such a name; --list prints them")
    if arguments.list:
        for fault in faults:
            print(f"{fault.name:<48} {fault.file}  {' '.join(fault.tests)}")
        return
    if wrong := check(faults, ROOT):
        sys.exit("\n".join(wrong))
    if arguments.check:
        print(f"{len(faults)} faults: every text stands where it should")
        return

    scratch = Scratch(arguments.scratch.resolve(), arguments.jobs)
    first_without_faults(scratch, faults)
    missed = []
    for fault in faults:
        begin = time.monotonic()
        seen_by = scratch.plant(fault)
        missed += [] if seen_by else [fault.name]
        print(f"{fault.name:<48} {'caught by ' + seen_by if seen_by else 'NOT CAUGHT'}"
              f"  ({time.monotonic() - begin:.0f} s)", flush=True)
    print(f"{len(faults) - len(missed)} of {len(faults)} faults caught")
    if missed:
        sys.exit(f"not caught: {', '.join(missed)}")


if __name__ == "__main__":
    main()
