#include "runtime/checkpoint/checkpoint.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <set>

#include "runtime/checkpoint/checked.h"
#include "runtime/checkpoint/crc32c.h"
#include "runtime/checkpoint/piece_io.h"

namespace r1::checkpoint {
namespace {

std::string key_of(std::string_view kind, std::string_view tensor) {
  return std::string(kind) + ':' + std::string(tensor);
}

}  // namespace

/// The files of a checkpoint by name, each opened at its first use: most ranks need few of them.
struct CheckpointReader::Files {
  std::mutex mutex;
  std::unordered_map<std::string, std::unique_ptr<SafetensorsFile>> open;
};

CheckpointReader::CheckpointReader() : files_(std::make_unique<Files>()) {}
CheckpointReader::~CheckpointReader() = default;
CheckpointReader::CheckpointReader(CheckpointReader&&) noexcept = default;
CheckpointReader& CheckpointReader::operator=(CheckpointReader&&) noexcept = default;

CheckpointReader CheckpointReader::open(const fs::path& dir) {
  std::error_code error;
  if (!fs::is_directory(dir, error)) throw DataError("{}: no such directory", dir.string());
  const fs::path path = dir / kManifestFile;
  if (!fs::exists(path, error))
    throw DataError("{}: is not a checkpoint of r1run: there is no {} in it", dir.string(),
                    kManifestFile);
  CheckpointReader r;
  r.dir_ = dir;
  r.manifest_ = manifest_from_json(read_text_file(path, kMaxManifestBytes), path.string());
  for (const FileRecord& f : r.manifest_.files) {
    const ReadFile file(dir / f.name);
    if (file.size() != f.bytes)
      throw DataError("{}: has {} bytes, the manifest says {}", (dir / f.name).string(),
                      file.size(), f.bytes);
  }
  for (size_t i = 0; i < r.manifest_.pieces.size(); ++i) {
    const Piece& p = r.manifest_.pieces[i];
    r.pieces_[key_of(p.kind, p.tensor)].push_back(i);
    r.pieces_of_file_[p.file].push_back(i);
  }
  return r;
}

bool CheckpointReader::has(std::string_view kind, std::string_view tensor) const {
  return pieces_.contains(key_of(kind, tensor));
}

const std::vector<size_t>& CheckpointReader::pieces_of(std::string_view kind,
                                                       std::string_view tensor) const {
  const auto it = pieces_.find(key_of(kind, tensor));
  if (it == pieces_.end())
    throw DataError("{}: there is no {} of tensor {} in it", dir_.string(), kind, shown(tensor));
  return it->second;
}

const std::vector<int64_t>& CheckpointReader::global_shape(std::string_view kind,
                                                           std::string_view tensor) const {
  return manifest_.pieces[pieces_of(kind, tensor).front()].global_shape;
}

DType CheckpointReader::dtype(std::string_view kind, std::string_view tensor) const {
  return manifest_.pieces[pieces_of(kind, tensor).front()].dtype;
}

const SafetensorsFile& CheckpointReader::file(const std::string& name) const {
  const std::scoped_lock lock(files_->mutex);
  std::unique_ptr<SafetensorsFile>& slot = files_->open[name];
  if (slot) return *slot;
  auto opened =
      std::make_unique<SafetensorsFile>(SafetensorsFile::open(dir_ / name, HeaderRules::kOwn));
  const SafetensorsFile& f = *opened;
  const FileRecord& record = *manifest_.find_file(name);
  if (f.file_bytes() != record.bytes)
    throw DataError("{}: has {} bytes, the manifest says {}", f.path().string(), f.file_bytes(),
                    record.bytes);
  // The header's checksum is not stored, but follows: the file's is made of it and of those of the
  // entries.
  std::unordered_map<std::string_view, const Piece*> by_entry;
  for (const size_t i : pieces_of_file_.at(name))
    by_entry.emplace(manifest_.pieces[i].entry, &manifest_.pieces[i]);
  uint32_t crc = f.header_crc32c();
  for (const TensorEntry& t : f.tensors()) {
    const auto it = by_entry.find(t.name);
    if (it == by_entry.end())
      throw DataError("{}: tensor {} is not in the manifest", f.path().string(), shown(t.name));
    const Piece& p = *it->second;
    if (t.dtype != p.dtype || t.shape != p.box.size)
      throw DataError("{}: tensor {} is {} {}, the manifest says {} {}", f.path().string(),
                      shown(t.name), t.dtype_name, shape_text(t.shape), safetensors_name(p.dtype),
                      shape_text(p.box.size));
    crc = crc32c_combine(crc, p.crc32c, t.bytes());
    by_entry.erase(it);
  }
  if (!by_entry.empty())
    throw DataError("{}: there is no tensor {} in it, but the manifest says so", f.path().string(),
                    shown(by_entry.begin()->first));
  if (crc != record.crc32c)
    throw DataError(
        "{}: CRC32C mismatch: the header, with the checksums of its tensors, gives {:08x}; the "
        "manifest says "
        "{:08x}: it was damaged",
        f.path().string(), crc, record.crc32c);
  slot = std::move(opened);
  return *slot;
}

void CheckpointReader::read(std::string_view kind, std::string_view tensor,
                            const parallel::ShardSpec& spec, int rank, DType dtype, void* dst,
                            PartialReads partial) const {
  read_box(kind, tensor, spec.global_shape(), box_of(spec, rank), dtype, dst, partial);
}

void CheckpointReader::read_box(std::string_view kind, std::string_view tensor,
                                std::span<const int64_t> global_shape, const Box& want, DType dtype,
                                void* dst, PartialReads partial) const {
  const std::vector<size_t>& pieces = pieces_of(kind, tensor);
  const Piece& first = manifest_.pieces[pieces.front()];
  if (!std::equal(first.global_shape.begin(), first.global_shape.end(), global_shape.begin(),
                  global_shape.end()))
    throw DataError("{}: {} of tensor {} has the shape {}; this model asks for {}", dir_.string(),
                    kind, shown(tensor), shape_text(first.global_shape), shape_text(global_shape));
  if (!convertible(first.dtype, dtype))
    throw DataError("{}: {} of tensor {} is {}, which cannot be read as {}", dir_.string(), kind,
                    shown(tensor), safetensors_name(first.dtype), dtype_name(dtype));
  // The pieces cover the tensor without overlap (manifest_from_json), so they cover `want`.
  for (const size_t i : pieces) {
    const Piece& p = manifest_.pieces[i];
    const Box part = intersect(p.box, want);
    if (part.elems() == 0) continue;
    const SafetensorsFile& f = file(p.file);
    const TensorEntry& entry = f.at(p.entry);
    if (part != p.box && partial == PartialReads::kUnchecked) {
      read_part(f, entry, p.box, part, want, dtype, dst);
      continue;
    }
    const uint32_t crc = read_part_checked(f, entry, p.box, part, want, dtype, dst);
    if (crc != p.crc32c) throw DataError("{}", mismatch(p, crc));
  }
}

std::string CheckpointReader::mismatch(const Piece& p, uint32_t found) const {
  return fmt::format(
      "{}: tensor {} ({} of {}, {}): CRC32C mismatch: found {:08x}, the manifest says {:08x}: it "
      "was damaged",
      (dir_ / p.file).string(), shown(p.entry), p.kind, shown(p.tensor), p.box.str(), found,
      p.crc32c);
}

CheckpointReader::Verified CheckpointReader::verify_part(int part, int parts) const {
  R1_CHECK(0 <= part && part < parts, "part {} of {}", part, parts);
  Verified done;
  std::string bad;
  size_t n_bad = 0;
  const auto report = [&](const std::string& text) {
    if (++n_bad <= 20) bad += fmt::format("{}{}", bad.empty() ? "" : "\n", text);
  };
  // Units of work: pieces, and files that hold none. Dealt out by bytes: unit u goes to the part
  // whose range of the running sum of bytes its middle is in.
  uint64_t total = 0;
  for (const FileRecord& f : manifest_.files)
    total = must_fit(checked_add(total, f.bytes), "bytes of a checkpoint");
  uint64_t before = 0;
  const auto mine = [&](uint64_t bytes) {
    const auto middle = static_cast<long double>(before) + static_cast<long double>(bytes) / 2;
    before += bytes;
    const auto owner =
        static_cast<int>(middle / static_cast<long double>(std::max<uint64_t>(total, 1)) * parts);
    return std::min(owner, parts - 1) == part;
  };
  std::vector<char> buffer(kChunkBytes);
  for (const FileRecord& record : manifest_.files) {
    const auto pieces = pieces_of_file_.find(record.name);
    try {
      if (pieces == pieces_of_file_.end()) {
        if (!mine(record.bytes)) continue;
        const ReadFile f(dir_ / record.name);
        uint32_t crc = 0;
        for (uint64_t at = 0; at < record.bytes; at += buffer.size()) {
          const auto n = static_cast<size_t>(std::min<uint64_t>(buffer.size(), record.bytes - at));
          f.read(at, buffer.data(), n);
          crc = crc32c(buffer.data(), n, crc);
        }
        if (f.size() != record.bytes || crc != record.crc32c)
          report(fmt::format(
              "{}: CRC32C mismatch: found {:08x}, the manifest says {:08x}: it was damaged",
              f.path().string(), crc, record.crc32c));
        ++done.files;
        done.bytes += record.bytes;
        continue;
      }
      const SafetensorsFile& f = file(record.name);  // checks the header
      bool any = false;
      for (const size_t i : pieces->second) {
        const Piece& p = manifest_.pieces[i];
        const TensorEntry& t = f.at(p.entry);
        if (!mine(t.bytes())) continue;
        any = true;
        uint32_t crc = 0;
        for (uint64_t at = 0; at < t.bytes(); at += buffer.size()) {
          const auto n = static_cast<size_t>(std::min<uint64_t>(buffer.size(), t.bytes() - at));
          f.read_bytes(t, at, buffer.data(), n);
          crc = crc32c(buffer.data(), n, crc);
        }
        if (crc != p.crc32c) report(mismatch(p, crc));
        done.bytes += t.bytes();
      }
      done.files += any ? 1 : 0;
    } catch (const DataError& e) {
      report(e.what());
    }
  }
  if (n_bad > 0)
    throw DataError("{}: {} files or tensors are damaged:\n{}{}", dir_.string(), n_bad, bad,
                    n_bad > 20 ? "\n..." : "");
  return done;
}

// ---- writing

std::string entry_name(const Piece& p) {
  const bool whole = p.box == whole_box(p.global_shape);
  if (p.kind == kKindWeight && whole) return p.tensor;
  return fmt::format("{}:{}{}", p.kind, p.tensor, whole ? "" : p.box.str());
}

PieceWriter::PieceWriter(const fs::path& stage, const std::string& file, std::vector<Piece> pieces,
                         SyscallHook* hook)
    : file_(file), pieces_(std::move(pieces)) {
  std::stable_sort(pieces_.begin(), pieces_.end(), [](const Piece& a, const Piece& b) {
    return dtype_bytes(a.dtype) > dtype_bytes(b.dtype);
  });
  std::vector<TensorDecl> decls;
  for (Piece& p : pieces_) {
    p.file = file_;
    p.entry = entry_name(p);
    decls.push_back({p.entry, p.dtype, p.box.size});
  }
  writer_ = std::make_unique<SafetensorsWriter>(
      stage / file_, std::move(decls), std::map<std::string, std::string>{{"format", "pt"}}, hook);
}

void PieceWriter::write(size_t index, const void* data, size_t bytes) {
  writer_->write(pieces_.at(index).entry, data, bytes);
}

Contribution PieceWriter::finish() {
  const FileSummary summary = writer_->finish();
  for (size_t i = 0; i < pieces_.size(); ++i) pieces_[i].crc32c = summary.tensors[i].crc32c;
  return {{FileRecord{file_, summary.bytes, summary.crc32c}}, pieces_};
}

FileRecord write_staged_text(const fs::path& stage, const std::string& file, std::string_view text,
                             SyscallHook* hook) {
  write_text_file(stage / file, text, hook);
  return {file, text.size(), crc32c(text)};
}

std::optional<FileRecord> write_weight_index(const fs::path& stage,
                                             const std::vector<Piece>& pieces, SyscallHook* hook) {
  std::map<std::string, std::string> weight_map;
  std::set<std::string_view> files;
  uint64_t total = 0;
  for (const Piece& p : pieces) {
    if (p.kind != kKindWeight) continue;
    R1_CHECK(p.entry == p.tensor, "weight {} is in pieces: transformers would not find it",
             shown(p.tensor));
    R1_CHECK(weight_map.emplace(p.tensor, p.file).second, "weight {} is in two files",
             shown(p.tensor));
    files.insert(p.file);
    const auto bytes = checked_mul(static_cast<uint64_t>(p.box.elems()),
                                   static_cast<uint64_t>(dtype_bytes(p.dtype)));
    total = must_fit(checked_add(total, must_fit(bytes, "bytes of a tensor")), "bytes of a model");
  }
  if (files.size() < 2) return std::nullopt;
  return write_staged_text(stage, "model.safetensors.index.json",
                           weight_index_json(weight_map, total), hook);
}

}  // namespace r1::checkpoint
