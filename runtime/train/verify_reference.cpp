#include "runtime/train/verify_reference.h"

#include <algorithm>

#include "runtime/checkpoint/slice.h"
#include "runtime/checkpoint/safetensors.h"
#include "runtime/core/error.h"
#include "runtime/core/rng.h"

namespace r1::train {

namespace fs = std::filesystem;

namespace {

std::vector<int64_t> read_integers(const checkpoint::SafetensorsFile& f, const char* name) {
  const checkpoint::TensorEntry& e = f.at(name);
  if (e.dtype != DType::kI64 || e.shape.size() != 2)
    throw DataError("{}: '{}' is {} {}, expected I64 [rows, tokens]", f.path().string(), name, e.dtype_name,
                    checkpoint::shape_text(e.shape));
  std::vector<int64_t> v(e.elems());
  f.read_bytes(e, 0, v.data(), e.bytes());
  return v;
}

std::vector<float> read_floats(const checkpoint::SafetensorsFile& f, const checkpoint::TensorEntry& e) {
  std::vector<float> v(e.elems());
  if (e.dtype == DType::kF32) {
    f.read_bytes(e, 0, v.data(), e.bytes());
    return v;
  }
  if (!e.dtype || !checkpoint::convertible(*e.dtype, DType::kF32))
    throw DataError("{}: '{}' is {}, expected a floating type", f.path().string(), e.name, e.dtype_name);
  std::vector<char> raw(e.bytes());
  f.read_bytes(e, 0, raw.data(), raw.size());
  checkpoint::convert_elements(*e.dtype, raw.data(), DType::kF32, v.data(), v.size());
  return v;
}

/// Loss of the reference's own logits, in double: mean over positions whose next label is trained.
double loss_of_logits(const Reference& r, int64_t vocab) {
  double sum = 0;
  int64_t count = 0;
  for (int64_t i = 0; i < r.rows; ++i)
    for (int64_t t = 0; t + 1 < r.seq_len; ++t) {
      const int64_t label = r.labels[static_cast<size_t>(i * r.seq_len + t + 1)];
      if (label < 0) continue;
      const float* row = &r.logits[static_cast<size_t>((i * r.seq_len + t) * vocab)];
      const double top = *std::max_element(row, row + vocab);
      double z = 0;
      for (int64_t v = 0; v < vocab; ++v) z += std::exp(static_cast<double>(row[v]) - top);
      sum += top + std::log(z) - static_cast<double>(row[label]);
      ++count;
    }
  return count > 0 ? sum / static_cast<double>(count) : 0.0;
}

void read_rows(const checkpoint::SafetensorsFile& f, int64_t vocab, Reference* r) {
  const std::string path = f.path().string();
  const checkpoint::TensorEntry& ids = f.at("input_ids");
  r->ids = read_integers(f, "input_ids");
  r->labels = read_integers(f, "labels");
  r->rows = ids.shape.at(0);
  r->seq_len = ids.shape.at(1);
  if (f.find("attention_mask") != nullptr) r->mask = read_integers(f, "attention_mask");
  else r->mask.assign(r->ids.size(), 1);
  if (r->labels.size() != r->ids.size() || r->mask.size() != r->ids.size())
    throw DataError("{}: input_ids, labels and attention_mask differ in shape", path);
  for (const int64_t id : r->ids)
    if (id < 0 || id >= vocab)
      throw DataError("{}: input_ids has {}, the model's vocabulary ends at {}", path, id, vocab - 1);
  for (const int64_t label : r->labels)
    if (label >= vocab)
      throw DataError("{}: labels has {}, the model's vocabulary ends at {}", path, label, vocab - 1);
}

void read_logits(const checkpoint::SafetensorsFile& f, int64_t vocab, Reference* r) {
  const auto* e = f.find("logits");
  if (e == nullptr) return;
  if (e->shape != std::vector<int64_t>{r->rows, r->seq_len, vocab})
    throw DataError("{}: logits has shape {}, expected [{}, {}, {}]", f.path().string(), checkpoint::shape_text(e->shape), r->rows,
                    r->seq_len, vocab);
  r->logits = read_floats(f, *e);
  r->loss = loss_of_logits(*r, vocab);
}

void read_gradients(const checkpoint::SafetensorsFile& f, const parallel::ModelConfig& config, Reference* r) {
  const std::string path = f.path().string();
  const parallel::ModelSpec spec(config, 1, 1);
  for (const parallel::ParamSpec& p : spec.all_params()) {
    const auto* e = f.find("grad." + p.name);
    if (e == nullptr) continue;
    if (e->shape != p.shape)
      throw DataError("{}: grad.{} has shape {}, the parameter has {}", path, p.name, checkpoint::shape_text(e->shape),
                      checkpoint::shape_text(p.shape));
    r->gradients[p.name] = read_floats(f, *e);
  }
  for (const checkpoint::TensorEntry& e : f.tensors())
    if (e.name.starts_with("grad.") && !r->gradients.contains(e.name.substr(5)))
      throw DataError("{}: '{}' is the gradient of no parameter of this model", path, e.name);
}

}  // namespace

Reference read_reference(const fs::path& path, const parallel::ModelConfig& config) {
  const auto f = checkpoint::SafetensorsFile::open(path);
  Reference r;
  read_rows(f, config.vocab, &r);
  read_logits(f, config.vocab, &r);
  read_gradients(f, config, &r);
  if (r.logits.empty() && r.gradients.empty())
    throw DataError("{}: holds neither logits nor grad.<parameter> tensors: nothing to compare with", path.string());
  return r;
}

void write_reference(const fs::path& path, const parallel::ModelConfig& config, const Reference& r) {
  std::vector<checkpoint::TensorDecl> decls{{"input_ids", DType::kI64, {r.rows, r.seq_len}},
                                            {"labels", DType::kI64, {r.rows, r.seq_len}},
                                            {"attention_mask", DType::kI64, {r.rows, r.seq_len}},
                                            {"logits", DType::kF32, {r.rows, r.seq_len, config.vocab}}};
  const parallel::ModelSpec spec(config, 1, 1);
  for (const parallel::ParamSpec& p : spec.all_params()) decls.push_back({"grad." + p.name, DType::kF32, p.shape});
  checkpoint::SafetensorsWriter w(path, decls);
  for (const auto* v : {&r.ids, &r.labels, &r.mask})
    w.write(v == &r.ids ? "input_ids" : v == &r.labels ? "labels" : "attention_mask", v->data(),
            v->size() * sizeof(int64_t));
  w.write("logits", r.logits.data(), r.logits.size() * sizeof(float));
  for (const parallel::ParamSpec& p : spec.all_params()) {
    const std::vector<float>& g = r.gradients.at(p.name);
    w.write("grad." + p.name, g.data(), g.size() * sizeof(float));
  }
  static_cast<void>(w.finish());
}

Reference made_rows(const parallel::ModelConfig& config, uint64_t seed) {
  Reference r{.rows = 4, .seq_len = std::min<int64_t>(64, config.max_positions)};
  const Rng rng(seed, "verify rows");
  for (int64_t i = 0; i < r.rows; ++i) {
    const int64_t length = r.seq_len - i * (r.seq_len / 6);
    for (int64_t t = 0; t < r.seq_len; ++t) {
      const bool real = t < length;
      const auto id = static_cast<int64_t>(rng.below(static_cast<uint64_t>(i * r.seq_len + t), static_cast<uint64_t>(config.vocab)));
      r.ids.push_back(real ? id : 0);
      r.labels.push_back(real ? id : -100);
      r.mask.push_back(real ? 1 : 0);
    }
  }
  return r;
}

data::Row reference_row(const Reference& r, int64_t i, const fs::path& where) {
  data::Row row;
  int64_t length = 0;
  for (int64_t t = 0; t < r.seq_len; ++t) {
    const auto at = static_cast<size_t>(i * r.seq_len + t);
    if (r.mask[at] != 0 && length != t)
      throw DataError("{}: row {}: attention_mask must be ones at the front, then zeros", where.string(), i);
    length += r.mask[at] != 0 ? 1 : 0;
    row.ids.push_back(static_cast<int32_t>(r.ids[at]));
    const bool last = t + 1 == r.seq_len;
    const int64_t next = last ? -100 : r.labels[at + 1];
    row.targets.push_back(next >= 0 ? static_cast<int32_t>(next) : -1);
    row.trained_tokens += next >= 0 ? 1 : 0;
  }
  row.segments = {static_cast<int32_t>(length), static_cast<int32_t>(r.seq_len - length)};
  return row;
}

}  // namespace r1::train
