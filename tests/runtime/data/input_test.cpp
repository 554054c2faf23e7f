#include "runtime/data/input.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <zlib.h>
#include <zstd.h>

#include <string>
#include <tuple>
#include <vector>

#include "tests/runtime/data/support.h"

namespace r1::data {
namespace {

using test::message_of;
using Rows = std::vector<std::pair<int64_t, std::string>>;

std::string gzip(const std::string& text) {
  z_stream s{};
  EXPECT_EQ(deflateInit2(&s, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(deflateBound(&s, text.size()) + 64, '\0');
  s.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  s.avail_in = static_cast<uInt>(text.size());
  s.next_out = reinterpret_cast<Bytef*>(out.data());
  s.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&s, Z_FINISH), Z_STREAM_END);
  out.resize(out.size() - s.avail_out);
  deflateEnd(&s);
  return out;
}

/// With a checksum, as the zstd program writes it: without one, damage need not show.
std::string zstd(const std::string& text) {
  ZSTD_CCtx* context = ZSTD_createCCtx();
  EXPECT_EQ(ZSTD_isError(ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1)), 0u);
  std::string out(ZSTD_compressBound(text.size()) + 16, '\0');
  const size_t n = ZSTD_compress2(context, out.data(), out.size(), text.data(), text.size());
  EXPECT_EQ(ZSTD_isError(n), 0u);
  out.resize(n);
  ZSTD_freeCCtx(context);
  return out;
}

Rows read_rows(const std::string& content, const std::string& name = "rows.jsonl",
               RecordReader::Text text = RecordReader::Text::kByName, size_t target = 1 << 16,
               Layout* layout = nullptr) {
  RecordReader reader(InputFile::from_memory(content, name), text);
  if (layout != nullptr) *layout = reader.layout();
  Rows out;
  RecordBatch batch;
  int64_t index = 0;
  while (reader.next(batch, target)) {
    EXPECT_EQ(batch.index, index++);
    for (const auto& r : batch.records)
      out.emplace_back(r.line, r.too_large ? "<too large>" : std::string(batch.text(r)));
  }
  return out;
}

TEST(Input, JsonLinesWithEverythingAroundThem) {
  const Rows expected = {
      {1, "{\"a\":1}"}, {3, "{\"b\":\"x\\ny\"}"}, {5, "  {broken"}, {6, "{\"c\":3}"}};
  const std::string text =
      "\xef\xbb\xbf{\"a\":1}\r\n\n{\"b\":\"x\\ny\"}\n \t \n  {broken\n{\"c\":3}";
  for (const size_t target : {1u, 10u, 100000u}) {
    EXPECT_EQ(read_rows(text, "a.jsonl", RecordReader::Text::kByName, target), expected);
    EXPECT_EQ(read_rows(text + "\n", "a.jsonl", RecordReader::Text::kByName, target), expected);
    EXPECT_EQ(read_rows(text + "\r\n\r\n", "a.jsonl", RecordReader::Text::kByName, target),
              expected);
  }
}

TEST(Input, ArraysOverLinesAndOnOne) {
  Layout layout{};
  const std::string text =
      "\n [ {\"a\": \"]}\\\"[\"},\n  {\"b\":\n[1, {\"c\": 2}]},7, \"s,]\", null ]\n\n";
  const Rows expected = {{2, "{\"a\": \"]}\\\"[\"}"},
                         {3, "{\"b\":\n[1, {\"c\": 2}]}"},
                         {4, "7"},
                         {4, "\"s,]\""},
                         {4, "null"}};
  for (const size_t target : {1u, 12u, 100000u})
    EXPECT_EQ(read_rows(text, "a.json", RecordReader::Text::kByName, target, &layout), expected);
  EXPECT_EQ(layout, Layout::kJsonArray);
  EXPECT_EQ(read_rows("[]", "a.json"), Rows{});
  EXPECT_EQ(read_rows("[ ]\n", "a.json"), Rows{});
}

TEST(Input, ValuesOneAfterTheOther) {
  Layout layout{};
  const Rows expected = {{1, "{\n \"a\": 1\n}"}, {5, "{\"b\": {\n}}"}};
  EXPECT_EQ(read_rows("{\n \"a\": 1\n}\n\n{\"b\": {\n}}", "a.json", RecordReader::Text::kByName, 1,
                      &layout),
            expected);
  EXPECT_EQ(layout, Layout::kJsonValues);
  EXPECT_EQ(read_rows("{\"a\": 1}\n{\"b\": 2}\n", "a.json", RecordReader::Text::kByName, 1, &layout)
                .size(),
            2u);
  EXPECT_EQ(layout, Layout::kJsonLines);
}

TEST(Input, TextByNameAndByOption) {
  Layout layout{};
  const Rows expected = {{1, "one {"}, {3, "  two"}};
  EXPECT_EQ(read_rows("one {\n\n  two\n", "a.txt", RecordReader::Text::kByName, 1, &layout),
            expected);
  EXPECT_EQ(layout, Layout::kTextLines);
  EXPECT_EQ(read_rows("one {\n\n  two\n", "a.data", RecordReader::Text::kYes), expected);
  (void)read_rows("{\"text\": 1}\n", "a.jsonl", RecordReader::Text::kYes, 1, &layout);
  EXPECT_EQ(layout, Layout::kJsonLines) << "a file that calls itself JSON is JSON";
}

TEST(Input, CompressionIsToldByContent) {
  std::string text;
  Rows expected;
  for (int i = 0; i < 40000; ++i) {
    expected.emplace_back(i + 1, fmt::format("{{\"row\": {}}}", i * 7919 % 40000));
    text += expected.back().second + "\n";
  }
  EXPECT_EQ(read_rows(text), expected);
  EXPECT_EQ(read_rows(gzip(text)), expected);
  EXPECT_EQ(read_rows(zstd(text), "rows.jsonl.zst"), expected);
  // Files put together from several compressed ones, cut anywhere.
  const size_t cut = text.size() / 3 + 5;
  EXPECT_EQ(read_rows(gzip(text.substr(0, cut)) + gzip("") + gzip(text.substr(cut)) +
                      std::string(512, '\0')),
            expected);
  EXPECT_EQ(read_rows(zstd(text.substr(0, cut)) + zstd("") + zstd(text.substr(cut))), expected);
}

TEST(Input, CutOffAndDamagedCompressionIsAnError) {
  std::string text;
  for (int i = 0; i < 20000; ++i) text += fmt::format("{{\"row\": {}}}\n", i * 7919 % 40000);
  for (const std::string& whole : {gzip(text), zstd(text)}) {
    for (const size_t keep : {size_t{5}, whole.size() / 2, whole.size() - 1})
      EXPECT_NE(
          message_of(ExitCode::kBadInput, [&] { (void)read_rows(whole.substr(0, keep), "d.gz"); })
              .find("half a download"),
          std::string::npos)
          << keep;
    std::string damaged = whole;
    for (size_t i = 0; i < 40; ++i)
      damaged[whole.size() / 2 + i] = static_cast<char>(damaged[whole.size() / 2 + i] ^ 0x55);
    EXPECT_NE(message_of(ExitCode::kBadInput, [&] { (void)read_rows(damaged); }), "");
  }
}

TEST(Input, HashOfTheStoredBytesDoesNotDependOnTheReads) {
  std::string text;
  for (int i = 0; i < 100000; ++i) text += static_cast<char>('a' + i % 23);
  Hasher whole;
  whole.update(text);
  for (const size_t step : {1u, 63u, 64u, 65u, 4096u}) {
    Hasher pieces;
    for (size_t i = 0; i < text.size(); i += step)
      pieces.update(std::string_view(text).substr(i, step));
    EXPECT_EQ(pieces.finish(), whole.finish()) << step;
  }
  InputFile file = InputFile::from_memory(text, "x");
  std::vector<char> buffer(1000);
  while (file.read(buffer.data(), buffer.size()) != 0) {
  }
  EXPECT_EQ(file.stored_hash(), whole.finish());
  EXPECT_EQ(file.stored_bytes_read(), static_cast<int64_t>(text.size()));
}

TEST(Input, HashSeesEveryBit) {
  std::string text(1000, 'x');
  Hasher reference;
  reference.update(text);
  for (size_t i = 0; i < text.size(); i += 7)
    for (int bit = 0; bit < 8; ++bit) {
      std::string other = text;
      other[i] = static_cast<char>(other[i] ^ (1 << bit));
      Hasher h;
      h.update(other);
      EXPECT_NE(h.finish().lo, reference.finish().lo);
      EXPECT_NE(h.finish().hi, reference.finish().hi);
    }
  Hasher longer;
  longer.update(text + std::string(1, '\0'));
  EXPECT_NE(longer.finish(), reference.finish());
}

TEST(Input, ARowWithoutEndIsSkippedNotHeld) {
  const std::string big(kMaxRecordBytes + 1000, 'x');
  EXPECT_EQ(read_rows("{\"a\":1}\n{\"b\":\"" + big + "\"}\n{\"c\":1}\n"),
            (Rows{{1, "{\"a\":1}"}, {2, "<too large>"}, {3, "{\"c\":1}"}}));
  EXPECT_EQ(read_rows("[{\"a\":1},{\"b\":\"" + big + "\"},\n{\"c\":1}]", "a.json"),
            (Rows{{1, "{\"a\":1}"}, {1, "<too large>"}, {2, "{\"c\":1}"}}));
}

TEST(Input, BrokenStructureNamesTheLine) {
  const std::vector<std::tuple<std::string, std::string, std::string>> table = {
      {"a.json", "[\n{\"a\": 1}\n{\"b\": 2}]", "a.json:3: expected ',' or ']'"},
      {"a.json", "[{\"a\": 1},\n]", "a.json:2: ',' before the ']'"},
      {"a.json", "[{\"a\": 1},,{}]", "a.json:1: found ','"},
      {"a.json", "[,{}]", "a.json:1: found ','"},
      {"a.json", "[{\"a\": 1},\n\n{\"b\": [1}]", "a.json:3: '}' closes nothing"},
      {"a.json", "[{\"a\": 1},\n{\"b\": ", "a.json:2: the file ends inside a row"},
      {"a.json", "[{\"a\": 1}\n", "a.json:2: the file ends before the ']'"},
      {"a.json", "[{\"a\": 1}]\n\n{\"b\": 1}", "a.json:3: found '{' behind the ']'"},
      {"a.json", std::string(601, '['), "nested more than 512 deep"},
      {"a.json", "{\n \"a\": [1}\n", "a.json:2: '}' closes nothing"},
      {"a.json", "{\n \"a\": 1\n", "the file ends inside a row"},
      {"a.json", "", "the file is empty"},
      {"a.json", " \n \n", "nothing but white space"},
      {"a.dat", "hello", "--format text"},
      {"a.jsonl", std::string("\xff\xfe{\0", 4), "UTF-16"},
      {"a.parquet", "PAR1....", "Parquet"},
      {"a.zip", "PK\x03\x04....", "zip"},
  };
  for (const auto& [name, content, expected] : table) {
    const std::string message =
        message_of(ExitCode::kBadInput, [&, n = name, c = content] { (void)read_rows(c, n); });
    EXPECT_NE(message.find(expected), std::string::npos) << content << "\n  " << message;
  }
}

TEST(Input, FilesThatCannotBeRead) {
  const test::TempDir dir;
  EXPECT_NE(message_of(ExitCode::kBadInput, [&] { InputFile f(dir.path() / "none.jsonl"); })
                .find("No such file"),
            std::string::npos);
  EXPECT_NE(
      message_of(ExitCode::kBadInput, [&] { InputFile f(dir.path()); }).find("is a directory"),
      std::string::npos);
  ASSERT_EQ(::mkfifo((dir.path() / "pipe").c_str(), 0600), 0);
  EXPECT_NE(message_of(ExitCode::kBadInput, [&] { InputFile f(dir.path() / "pipe"); })
                .find("not a regular file"),
            std::string::npos);
}

}  // namespace
}  // namespace r1::data
