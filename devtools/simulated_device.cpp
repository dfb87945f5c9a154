// A device for torch that lies in the machine's memory: every operation is computed by the CPU's kernels.
//
// What it has of a card: tensors that do not mix with the CPU's, memory that is counted and ends (the limit is set by
// the test), and running out of it.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/SDPBackend.h>
#include <ATen/native/Resize.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/_copy_from_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

#include <algorithm>
#include <functional>
#include <mutex>

namespace {

constexpr auto KEY = c10::DispatchKey::PrivateUse1;
const c10::Device DEVICE(c10::DeviceType::PrivateUse1, 0);

std::mutex mutex;
int64_t taken = 0, peak = 0, limit = int64_t(1) << 62;

struct Block {
  void* data;
  int64_t size;
};

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  c10::free_cpu(block->data);
  std::lock_guard<std::mutex> lock(mutex);
  taken -= block->size;
  delete block;
}

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    {
      std::lock_guard<std::mutex> lock(mutex);
      TORCH_CHECK_WITH(
          OutOfMemoryError,
          taken + int64_t(size) <= limit,
          "The simulated device is out of memory: ", size, " bytes asked for, ", taken, " of ", limit, " taken.");
      taken += int64_t(size);
      peak = std::max(peak, taken);
    }
    auto* block = new Block{size ? c10::alloc_cpu(size) : nullptr, int64_t(size)};
    return {block->data, block, &release, DEVICE};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return nullptr;
  }
  void copy_data(void* dest, const void* src, std::size_t count) const override {
    default_copy_data(dest, src, count);
  }
};

Memory memory;
REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, &memory);

// One device with one stream, on which all is done at once.
struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::PrivateUse1> {
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::Stream getNewStream(c10::Device device, int) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return getStream(DEVICE); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t size) const override {
    auto data = memory.allocate(size);
    std::memcpy(data.get(), storage.data(), std::min(size, storage.nbytes()));
    storage.set_data_ptr_noswap(std::move(data));
    storage.set_nbytes(size);
  }
};

// As on a card, a tensor of the CPU's is taken beside the device's only where it has no shape.
void check_device(const std::string& name, const at::Tensor& tensor) {
  TORCH_CHECK(
      !tensor.defined() || tensor.is_privateuseone() || tensor.dim() == 0,
      "Expected all tensors to be on the same device: ", name, " got one of ", tensor.device(), " beside ", DEVICE);
}

// The same memory as a tensor of the CPU.
at::Tensor seen(const at::Tensor& tensor) {
  if (!tensor.is_privateuseone())
    return tensor;
  return at::from_blob(
      tensor.data_ptr(), tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU));
}

// As it is multiplied: a CPU is slow in half precision, and a card adds such products up in float32 too.
at::Tensor multiplied(const at::Tensor& tensor) {
  check_device("a product", tensor);
  auto found = seen(tensor);
  return found.scalar_type() == at::kHalf ? found.to(at::kFloat) : found;
}

at::Tensor empty(
    at::IntArrayRef size,
    std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>,
    std::optional<at::Device>,
    std::optional<bool>,
    std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(
      size, &memory, c10::DispatchKeySet(KEY), dtype.value_or(at::get_default_dtype_as_scalartype()), format);
}

at::Tensor empty_strided(
    at::IntArrayRef size,
    at::IntArrayRef stride,
    std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>,
    std::optional<at::Device>,
    std::optional<bool>) {
  return at::detail::empty_strided_generic(
      size, stride, &memory, c10::DispatchKeySet(KEY), dtype.value_or(at::get_default_dtype_as_scalartype()));
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& to, bool) {
  seen(to).copy_(seen(self));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& to) {
  to.resize_(self.sizes());
  seen(to).copy_(seen(self));
  return to;
}

at::Scalar local_scalar(const at::Tensor& self) {
  return seen(self).item();
}

const at::Tensor& resize(const at::Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  return at::native::resize_(self, size, format);
}

int64_t choose_attention(
    const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, double, bool,
    std::optional<double>, bool) {
  return int64_t(at::SDPBackend::overrideable);
}

using Attended = std::tuple<
    at::Tensor, at::Tensor, at::Tensor, at::Tensor, c10::SymInt, c10::SymInt, at::Tensor, at::Tensor, at::Tensor>;

Attended attend(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const std::optional<at::Tensor>& bias,
    double dropout, bool causal, bool, std::optional<double> scale) {
  std::optional<at::Tensor> mask;
  if (bias.has_value())
    mask = multiplied(*bias);
  auto [found, sums] = at::_scaled_dot_product_flash_attention_for_cpu(
      multiplied(query), multiplied(key), multiplied(value), dropout, causal, mask, scale);
  auto none = at::empty({0}, found.options().device(DEVICE));
  return {found.to(DEVICE, query.scalar_type()), sums.to(DEVICE), none, none, query.size(-2), key.size(-2), none, none, none};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> attend_backward(
    const at::Tensor& gradient, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& bias, std::array<bool, 4>, const at::Tensor& found, const at::Tensor& sums, const at::Tensor&,
    const at::Tensor&, c10::SymInt, c10::SymInt, double dropout, bool causal, const at::Tensor&, const at::Tensor&,
    std::optional<double> scale) {
  std::optional<at::Tensor> mask;
  if (bias.defined())
    mask = multiplied(bias);
  auto [one, two, three] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      multiplied(gradient), multiplied(query), multiplied(key), multiplied(value), multiplied(found), seen(sums), dropout, causal, mask, scale);
  const auto format = query.scalar_type();
  return {one.to(DEVICE, format), two.to(DEVICE, format), three.to(DEVICE, format), at::Tensor()};
}

at::Tensor convolution(
    const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding,
    int64_t groups) {
  std::optional<at::Tensor> added;
  if (bias.has_value() && bias->defined())
    added = multiplied(*bias);
  return at::convolution(
             multiplied(input), multiplied(weight), added, stride, padding, dilation, transposed, output_padding,
             groups)
      .to(DEVICE, input.scalar_type());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& gradient, const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding, int64_t groups,
    std::array<bool, 3> mask) {
  auto moved = [&](const at::Tensor& found) {
    return found.defined() ? found.to(DEVICE, gradient.scalar_type()) : found;
  };
  auto [one, two, three] = at::convolution_backward(
      multiplied(gradient), multiplied(input), multiplied(weight), at::IntArrayRef(weight.size(0)), stride, padding,
      dilation, transposed, output_padding, groups, mask);
  return {moved(one), moved(two), moved(three)};
}

bool multiplies(const std::string& name) {
  return name == "aten::mm" || name == "aten::bmm" || name == "aten::addmm" || name == "aten::baddbmm";
}

void check_device(const c10::OperatorHandle& op, const torch::jit::Stack& stack) {
  for (const auto& value : stack) {
    if (value.isTensor())
      check_device(op.schema().name(), value.toTensor());
    // Lists of indices are of another kind: a card takes the CPU's too.
    else if (value.isTensorList())
      for (const at::Tensor& tensor : value.toTensorVector())
        check_device(op.schema().name(), tensor);
  }
}

// A value with each of its tensors turned into another.
c10::IValue turned(const c10::IValue& value, const std::function<at::Tensor(const at::Tensor&)>& turn) {
  if (value.isTensor())
    return value.toTensor().defined() ? c10::IValue(turn(value.toTensor())) : value;
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& tensor : value.toTensorVector())
      list.push_back(turn(tensor));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector())
      list.push_back(tensor.has_value() ? std::optional<at::Tensor>(turn(*tensor)) : std::nullopt);
    return list;
  }
  return value.isDevice() ? c10::IValue(c10::Device(at::kCPU)) : value;
}

// The CPU's kernel on the same memory. What it gives is copied to the device, but for what it wrote in place.
void on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  check_device(op, *stack);
  const auto& schema = op.schema();
  const auto& arguments = schema.arguments();
  const auto start = stack->size() - arguments.size();
  const torch::jit::Stack given(stack->begin() + start, stack->end());
  const bool wide = multiplies(schema.name());
  auto format = at::kFloat;
  for (size_t place = 0; place < arguments.size(); ++place) {
    const auto& value = given[place];
    if (value.isTensor() && value.toTensor().defined())
      format = value.toTensor().scalar_type();
    (*stack)[start + place] = turned(value, wide ? multiplied : seen);
    // What is given as out= may get another size, which memory that is seen cannot.
    if (arguments[place].is_out() && value.isTensor())
      (*stack)[start + place] = at::empty_like((*stack)[start + place].toTensor());
  }
  const torch::jit::Stack used(stack->begin() + start, stack->end());
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  const auto written = [](const c10::AliasInfo* alias) { return alias != nullptr && alias->isWrite(); };
  for (size_t place = 0; place < arguments.size(); ++place) {
    if (!written(arguments[place].alias_info()) || !given[place].isTensor() || !(wide || arguments[place].is_out()))
      continue;
    const auto &to = given[place].toTensor(), &found = used[place].toTensor();
    if (to.sizes() != found.sizes())
      to.resize_(found.sizes());
    seen(to).copy_(found);
  }
  const auto returned = stack->size() - schema.returns().size();
  for (size_t place = 0; place < schema.returns().size(); ++place) {
    auto& value = (*stack)[returned + place];
    const auto* alias = schema.returns()[place].alias_info();
    if (written(alias)) {
      for (size_t taken = 0; taken < arguments.size(); ++taken)
        if (written(arguments[taken].alias_info()) && *arguments[taken].alias_info() == *alias)
          value = given[taken];
    } else {
      value = turned(value, [&](const at::Tensor& found) {
        return wide ? found.to(DEVICE, format) : found.to(DEVICE);
      });
    }
  }
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("resize_", &resize);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("view_as_real", &at::native::view_as_real);
  m.impl("view_as_complex", &at::native::view_as_complex);
  m.impl("set_.source_Storage_storage_offset", &at::native::set_storage_cpu_);
  m.impl("set_.source_Storage", &at::native::set_);
  m.impl("set_.source_Tensor", &at::native::set_tensor_);
  m.impl("set_", &at::native::set_cpu_);
  m.impl("_scaled_dot_product_fused_attention_overrideable", &attend);
  m.impl("_scaled_dot_product_fused_attention_overrideable_backward", &attend_backward);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
}

int64_t memory_taken() {
  return taken;
}

int64_t memory_peak() {
  return peak;
}

int64_t memory_limit() {
  return limit;
}

void reset_peak() {
  std::lock_guard<std::mutex> lock(mutex);
  peak = taken;
}

void set_limit(int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex);
  limit = bytes;
}

TORCH_LIBRARY(mace_simulated_device, m) {
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  m.def("taken() -> int", &memory_taken);
  m.def("peak() -> int", &memory_peak);
  m.def("limit() -> int", &memory_limit);
  m.def("reset_peak() -> ()", &reset_peak);
  m.def("set_limit(int bytes) -> ()", &set_limit);
}

} // namespace

namespace at::native {

REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &choose_attention)

} // namespace at::native
