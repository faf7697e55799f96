// The program as a user runs it, on a tiny random model.

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "graft/version.h"
#include "tests/support/program.h"
#include "tests/support/tiny_model.h"

namespace graft::app {
namespace {

using llm::testing::Outcome;
using llm::testing::read_text;
using llm::testing::TemporaryFolder;
using llm::testing::TinyModel;
using llm::testing::write_text;
using nlohmann::json;

class CommandsTest : public ::testing::Test {
 protected:
  CommandsTest() {
    TinyModel().write(model_);
    std::filesystem::create_directory(folder_.file("data"));
    const std::string sample = R"({"prompt": "say it", "completion": "abab"})";
    write_text(folder_.file("data/train.jsonl"), sample + "\n" + sample + "\n");
    write_text(folder_.file("data/valid.jsonl"), sample + "\n");
  }

  Outcome run(const std::string& arguments) const {
    return llm::testing::run_program(folder_, arguments);
  }

  Outcome finetune(const std::string& more) const {
    return run("finetune --model " + model_ + " --data " + folder_.file("data") +
               " --adapter-path " + adapter_ + " --batch-size 2 " + more);
  }

  const TemporaryFolder folder_;
  const std::string model_ = folder_.file("tiny.gguf");
  const std::string adapter_ = folder_.file("adapter");
};

std::vector<json> lines_of(const std::string& text) {
  std::vector<json> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(json::parse(line));
  return lines;
}

TEST_F(CommandsTest, FinetunesThenAnswersAsItWasTaught) {
  const Outcome trained = finetune(
      "--iters 80 --learning-rate 2e-2 --mask-prompt --require-fused --steps-per-report 20 "
      "--steps-per-eval 40 "
      "--lr-schedule cosine --warmup 5 --dropout 0.05");
  ASSERT_EQ(trained.status, 0) << trained.err;
  EXPECT_NE(trained.out.find("trainable"), std::string::npos);
  EXPECT_NE(trained.out.find("forward and backward: 14 of 14"), std::string::npos) << trained.out;
  EXPECT_EQ(trained.out.find('\x1b'), std::string::npos);  // no terminal, no escapes

  std::vector<double> train_losses;
  std::vector<double> val_losses;
  for (const json& line : lines_of(read_text(adapter_ + "/metrics.jsonl"))) {
    EXPECT_GT(line.at("peak_memory_bytes"), 1'000'000);
    EXPECT_GE(line.at("learning_rate"), 0.0);
    if (line.contains("val_loss")) {
      val_losses.push_back(line["val_loss"]);
    } else {
      train_losses.push_back(line.at("train_loss"));
      EXPECT_GT(line.at("tokens_per_second"), 0.0);
    }
  }
  ASSERT_EQ(train_losses.size(), 4u);
  ASSERT_EQ(val_losses.size(), 3u);  // before, in the middle, after
  EXPECT_LT(val_losses.back(), 0.1 * val_losses.front());
  const std::string plot = read_text(adapter_ + "/loss.svg");
  EXPECT_TRUE(plot.starts_with("<svg"));
  EXPECT_NE(plot.find("class=\"line train\""), std::string::npos);
  EXPECT_NE(plot.find("class=\"line valid\""), std::string::npos);

  const std::string ask = "generate --model " + model_ + " --prompt 'say it' --max-tokens 20";
  const Outcome taught = run(ask + " --adapter-path " + adapter_);
  EXPECT_EQ(taught.status, 0) << taught.err;
  EXPECT_EQ(taught.out, "abab\n");
  EXPECT_NE(run(ask).out, "abab\n");

  const std::string exam =
      "evaluate --model " + model_ + " --data " + folder_.file("data/train.jsonl");
  EXPECT_NE(run(exam + " --adapter-path " + adapter_).out.find("exact match: 100.0 % (2 of 2)"),
            std::string::npos);
  EXPECT_NE(run(exam).out.find("exact match: 0.0 % (0 of 2)"), std::string::npos);
}

TEST_F(CommandsTest, StartsFromAnotherAdapter) {
  ASSERT_EQ(finetune("--iters 0 --num-layers 1 --target-modules q_proj,v_proj").status, 0);
  const json first = json::parse(read_text(adapter_ + "/adapter_config.json"));
  EXPECT_EQ(first["target_modules"], json({"q_proj", "v_proj"}));
  EXPECT_EQ(first["layers_to_transform"], json({1}));
  const std::string weights = read_text(adapter_ + "/adapter_model.safetensors");

  ASSERT_EQ(finetune("--iters 0 --seed 9 --init-adapter " + adapter_).status, 0);
  EXPECT_EQ(read_text(adapter_ + "/adapter_model.safetensors"), weights);
  EXPECT_EQ(json::parse(read_text(adapter_ + "/adapter_config.json")), first);
}

TEST_F(CommandsTest, RecordsItsBatches) {
  const std::string log = folder_.file("batches.jsonl");
  ASSERT_EQ(finetune("--iters 3 --record-batches " + log).status, 0);
  const std::vector<json> batches = lines_of(read_text(log));
  ASSERT_EQ(batches.size(), 3u);
  EXPECT_EQ(batches[0]["tokens"].size(), 2u);
  EXPECT_EQ(batches[0]["tokens"][0].size(), batches[0]["targets"][0].size());
  // Without a masked prompt every target is the token that follows.
  EXPECT_EQ(batches[0]["targets"][0][0], batches[0]["tokens"][0][1]);
}

TEST_F(CommandsTest, MistakesAreOneClearLine) {
  const auto expect = [&](const Outcome& outcome, int status, const std::string& words) {
    EXPECT_EQ(outcome.status, status) << outcome.err;
    EXPECT_NE(outcome.err.find(words), std::string::npos) << outcome.err;
    if (status == 1) {
      EXPECT_EQ(outcome.err.find('\n'), outcome.err.size() - 1) << outcome.err;
      EXPECT_TRUE(outcome.err.starts_with("graft: ")) << outcome.err;
    }
  };
  const std::string ask = "generate --prompt x --model ";
  expect(run(ask + folder_.file("none.gguf")), 1, "none.gguf");
  write_text(folder_.file("text.gguf"), "This is no model.");
  expect(run(ask + folder_.file("text.gguf")), 1, "text.gguf");
  expect(run(ask + model_ + " --adapter-path " + folder_.file("nowhere")), 1, "nowhere");
  expect(finetune("--num-layers 3"), 1, "1 to 2");
  expect(finetune("--learning-rate 1e30 --iters 9 --max-grad-norm 0"), 1, "--learning-rate");
  write_text(folder_.file("data/train.jsonl"), "{\"prompt\": 1, \"completion\": \"x\"}\n");
  expect(finetune("--iters 1"), 1, "train.jsonl:1:");

  expect(run(""), 2, "subcommand");
  expect(finetune("--rank 0"), 2, "--rank");
  expect(finetune("--target-modules c_attn"), 2, "--target-modules");
  EXPECT_EQ(run("--version").out, std::string(kVersion) + "\n");
  EXPECT_NE(run("finetune --help").out.find("--max-grad-norm"), std::string::npos);
}

TEST_F(CommandsTest, InfoSaysWhatRunsFused) {
  const Outcome info = run("info --model " + model_);
  EXPECT_EQ(info.status, 0) << info.err;
  for (const char* words :
       {kVersion, "back-end cpu", "Tiny", "lora_linear q_proj", "fused", "tokenizer     runs",
        "chat template runs", "rms_norm              forward, backward  float32, bfloat16",
        "attention"}) {
    EXPECT_NE(info.out.find(words), std::string::npos) << words;
  }
}

}  // namespace
}  // namespace graft::app
