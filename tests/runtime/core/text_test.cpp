#include "runtime/core/text.h"

#include <gtest/gtest.h>

namespace r1 {
namespace {

TEST(Text, Trimmed) {
  EXPECT_EQ(trimmed(""), "");
  EXPECT_EQ(trimmed(" \t\r\n"), "");
  EXPECT_EQ(trimmed("a"), "a");
  EXPECT_EQ(trimmed("\n  a b\t\r\n"), "a b");
}

TEST(Text, LowerLeavesOtherBytesAlone) { EXPECT_EQ(lower("H100 SXM_Ä\xff"), "h100 sxm_Ä\xff"); }

TEST(Text, XmlEscaped) {
  EXPECT_EQ(xml_escaped("plain text, 100 %"), "plain text, 100 %");
  EXPECT_EQ(xml_escaped("<a href=\"x\">&amp;</a>"), "&lt;a href=&quot;x&quot;&gt;&amp;amp;&lt;/a&gt;");
  EXPECT_EQ(xml_escaped("two\nlines\tand \x1b[31mcolour\x01"), "two\nlines\tand [31mcolour");
  EXPECT_EQ(xml_escaped("µs …"), "µs …");
}

}  // namespace
}  // namespace r1
